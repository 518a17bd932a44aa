# A checkpoint as an image: components/weights-init copies it, components/weights-image mounts it.
# The demo's, from the top of the repository; and any other's, from its own folder:
#   docker build -f deploy/docker/weights.Dockerfile -t diptych-weights:demo .
#   docker build -f .../weights.Dockerfile -t diptych-weights:qwen2-vl-2b-instruct \
#     --build-arg FOLDER=. --build-arg NAME=Qwen2-VL-2B-Instruct .
FROM busybox:1.37.0
ARG FOLDER=models/demo
ARG NAME=demo
COPY ${FOLDER}/*.json ${FOLDER}/*.txt ${FOLDER}/*.jinja ${FOLDER}/*.safetensors /weights/${NAME}/
USER 65532:65532
