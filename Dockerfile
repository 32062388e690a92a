# Atelier's three images, from one file: `gateway` (no torch), `worker` (shared by the five) and `ui`.
#
#   docker build --target worker --build-arg TORCH_INDEX=… .     an index of CPU or CUDA builds
#   docker build --target worker --build-arg TORCH_WHEELS=… .    a folder of wheels, in this one
#
# With neither, and no folder `wheels`, it is pip's own choice: on Linux the CUDA build, with several gigabytes of CUDA packages.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS python
RUN groupadd --gid 10001 atelier \
    && useradd --uid 10001 --gid atelier --no-create-home --home-dir /tmp atelier \
    && install --directory --owner=atelier --group=atelier /data /weights \
    && python -m venv --without-pip /opt/atelier
WORKDIR /app
ENV PATH=/opt/atelier/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 \
    PIP_PYTHON=/opt/atelier/bin/python PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore

# pip compiles on one core, compileall on all; what some packages bring for other Pythons does not compile, which harms nobody.
FROM python AS gateway-packages
COPY locks/gateway.txt locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --no-deps --requirement locks/gateway.txt \
    && { python -m compileall -q -j 0 /opt/atelier/lib > /dev/null || true; }

FROM gateway-packages AS ui-packages
COPY locks/ui.txt locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --no-deps --requirement locks/ui.txt \
    && { python -m compileall -q -j 0 /opt/atelier/lib > /dev/null || true; }

FROM python AS wheels
ARG TORCH_WHEELS=wheels
# The lock is there so that COPY finds something where no such folder is.
COPY locks/worker.txt ${TORCH_WHEELS}* /wheels/

# WORKER_LOCK=ray: with Ray, for a cluster.
FROM python AS worker-packages
ARG WORKER_LOCK=worker
COPY locks/${WORKER_LOCK}.txt locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes --no-deps --requirement locks/${WORKER_LOCK}.txt \
    && { python -m compileall -q -j 0 /opt/atelier/lib > /dev/null || true; }
ARG TORCH_INDEX
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --find-links /wheels torch==2.13.0 \
    && { python -m compileall -q -j 0 /opt/atelier/lib > /dev/null || true; }

FROM gateway-packages AS gateway
COPY deploy/probe.py deploy/
COPY services services
COPY cli cli
COPY gateway gateway
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "gateway"]

FROM ui-packages AS ui
COPY deploy/probe.py deploy/
COPY ui ui
RUN python -m compileall -q .
USER 10001:10001
EXPOSE 8501
CMD ["python", "-m", "ui"]

# Takes the service: services.text.service:TextService, …
FROM worker-packages AS worker
COPY deploy/probe.py deploy/
COPY deploy/ray deploy/ray
COPY services services
RUN python -m compileall -q .
ENV BENTOML_DO_NOT_TRACK=True BENTOML_CONTAINERIZED=true BENTOML_HOME=/tmp/bentoml
USER 10001:10001
EXPOSE 3000
ENTRYPOINT ["bentoml", "serve", "--host", "0.0.0.0", "--port", "3000", "--timeout-keep-alive", "75", "--working-dir", "/app"]
