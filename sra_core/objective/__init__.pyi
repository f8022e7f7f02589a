from .base import Objective
from .batch import Batch, ObjectiveContext, StudentOutput, TeacherSpans
from .build import build_objective
from .diagnostics import center_cosines, diagnose, gradient_norms, span_statistics, weighted_terms
from .head import Head
from .logit import next_token_loss, span_logit_kl
from .needs import TeacherNeeds, student_layers, teacher_needs
from .pooling import pool_spans
from .terms import span_cosine_loss, span_geometry_loss, span_trajectory_loss, span_weights

__all__ = [
    "Batch",
    "Head",
    "Objective",
    "ObjectiveContext",
    "StudentOutput",
    "TeacherNeeds",
    "TeacherSpans",
    "build_objective",
    "center_cosines",
    "diagnose",
    "gradient_norms",
    "next_token_loss",
    "pool_spans",
    "span_cosine_loss",
    "span_geometry_loss",
    "span_logit_kl",
    "span_statistics",
    "span_trajectory_loss",
    "span_weights",
    "student_layers",
    "teacher_needs",
    "weighted_terms",
]
