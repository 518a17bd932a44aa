# The decoder. From the top of the repository, for CPUs, and for NVIDIA GPUs with flash-attn:
#   docker build -f deploy/docker/decoder.Dockerfile -t diptych-decoder:0.1.0 .
#   docker build -f deploy/docker/decoder.Dockerfile -t diptych-decoder:0.1.0-cuda --target cuda .
# torch is the package index's own build. An index of smaller, CPU-only builds: --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.12.12-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL
# Compiles services/common/native.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY gateway gateway
COPY services services
COPY cli cli
COPY protos protos
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/diptych \
 && /opt/diptych/bin/pip install --constraint constraints.txt '.[decoder,telemetry]'

# flash-attn is compiled, with the CUDA version that torch was built with.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS toolkit

FROM build AS build-cuda
COPY --from=toolkit /usr/local/cuda /usr/local/cuda
ENV CUDA_HOME=/usr/local/cuda
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/diptych/bin/pip install hatchling==1.33.0 ninja==1.13.0 packaging==25.0 wheel==0.45.1 \
 && /opt/diptych/bin/pip install --no-build-isolation --constraint constraints.txt '.[decoder,cuda,telemetry]'

FROM python:3.12.12-slim-bookworm AS runtime
# Nothing is written but below /tmp: where this runs, the file system is read-only.
ENV PATH=/opt/diptych/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 50051 50052
ENTRYPOINT ["python", "-m", "services.decoder"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/diptych /opt/diptych

FROM runtime AS cpu
COPY --from=build /opt/diptych /opt/diptych
