# docker build -t u2net .
# docker run --rm -p 7860:7860 u2net                                      page and API
# docker run --rm -v "$PWD:/data" u2net predict /data/photos              into ./predictions
# docker run --rm -v "$PWD:/data" -v u2net:/cache u2net photo.jpg --weights u2net
#
# With CUDA: --build-arg TORCH=https://download.pytorch.org/whl/cu130, and docker run --gpus all.
# It runs as user 1000; if your user ID differs, add --user "$(id -u):$(id -g)".
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
# The only unpinned package is the wheel just built:
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    for wheel in /wheels/*.whl; do \
        pip install --no-cache-dir --extra-index-url "$TORCH" "${wheel}[app,predict,video]"; \
    done \
    && useradd --uid 1000 --create-home u2net \
    && install --directory --mode=1777 /cache /data
# Downloads are kept in /cache. --user may name any user, so no home directory is relied on.
ENV HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    U2NET_TOOLKIT_CACHE=/cache
USER 1000
WORKDIR /data
EXPOSE 7860
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/api/health', timeout=4)"]
ENTRYPOINT ["u2net"]
CMD ["serve", "--host", "0.0.0.0"]
