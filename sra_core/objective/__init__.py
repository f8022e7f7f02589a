"""What the student minimises: the SRA terms on spans, the rivals behind the same interface."""

from sra_core.objective.batch import Batch, ObjectiveContext, StudentOutput, TeacherNeeds, TeacherSpans
from sra_core.objective.build import build_objective, require, student_layers, teacher_needs
from sra_core.objective.diagnostics import center_cosines, diagnose, gradient_norms, span_statistics, weighted_terms
from sra_core.objective.head import Head
from sra_core.objective.logit import next_token_loss, span_logit_kl
from sra_core.objective.pooling import pool_spans
from sra_core.objective.terms import span_cosine_loss, span_geometry_loss, span_trajectory_loss, span_weights

__all__ = [
    "Batch",
    "Head",
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
    "require",
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
