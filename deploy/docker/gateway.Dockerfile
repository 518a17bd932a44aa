# The gateway, without torch. From the top of the repository:
#   docker build -f deploy/docker/gateway.Dockerfile -t diptych-gateway:0.1.0 .
FROM python:3.12.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY gateway gateway
COPY services services
COPY cli cli
COPY protos protos
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/diptych \
 && /opt/diptych/bin/pip install --constraint constraints.txt '.[gateway,telemetry]'

FROM python:3.12.12-slim-bookworm
COPY --from=build /opt/diptych /opt/diptych
# Nothing is written but below /tmp: where this runs, the file system is read-only.
ENV PATH=/opt/diptych/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 50051 50052
ENTRYPOINT ["python", "-m", "gateway"]
