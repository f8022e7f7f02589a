# The worker: runs flows, on a GPU (default) or on the CPU. Servers use the CPU variant of the same image.
#
#   docker build --file docker/worker.Dockerfile --tag sra-worker:cuda .
#   docker build --file docker/worker.Dockerfile --tag sra-worker:cpu --build-arg VARIANT=cpu .
#
# torch brings its own CUDA libraries; the host needs an NVIDIA driver and the NVIDIA container toolkit.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG VARIANT=cuda

FROM ${PYTHON_IMAGE} AS build
ARG VARIANT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/venv \
 && torch="$(grep -E '^torch==' constraints.txt)" \
 && if [ "${VARIANT}" = cpu ]; then \
      /opt/venv/bin/pip install "${torch}" --index-url https://download.pytorch.org/whl/cpu; \
    else \
      /opt/venv/bin/pip install "${torch}"; \
    fi
# What the project needs, before its code is there: a changed line of code then installs the code alone.
RUN mkdir sra_core flows \
 && touch sra_core/__init__.py flows/__init__.py \
 && /opt/venv/bin/pip install --constraint constraints.txt ".[auth,dask,postgres,s3]" \
 && /opt/venv/bin/pip uninstall --yes sra \
 && rm -r build sra.egg-info
COPY sra_core ./sra_core
COPY flows ./flows
RUN /opt/venv/bin/pip install --no-deps . \
 && find /opt/venv -name '__pycache__' -prune -exec rm -rf {} +

FROM ${PYTHON_IMAGE} AS cpu-system
RUN useradd --uid 10001 --create-home sra \
 && install -d -o sra -g sra /app /data/store /data/cache /data/prefect /data/mlflow

FROM cpu-system AS cuda-system
# Triton compiles small launchers at run time.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc=4:12.2.0-3 libc6-dev=2.36-* \
 && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${VARIANT}-system AS worker
COPY --from=build /opt/venv /opt/venv
COPY --chown=sra:sra flows /app/flows
COPY --chown=sra:sra deploy /app/deploy
COPY --chown=sra:sra docker/health.py docker/mlflow-auth.ini /app/docker/
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PREFECT_HOME=/data/cache/prefect \
    SRA_ROOT=/app \
    SRA_STORE=/data/store \
    SRA_CACHE_HOME=/data/cache/sra \
    HF_HOME=/data/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_LOGGING_EXTRA_LOGGERS=sra_core \
    HEALTH_URL=http://127.0.0.1:8080/health
WORKDIR /app
USER 10001
VOLUME ["/data/store", "/data/cache"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 CMD ["python", "/app/docker/health.py"]
CMD ["sh", "-c", "python -m flows.recovery; exec prefect worker start --pool gpu --type process --install-policy never --with-healthcheck"]
