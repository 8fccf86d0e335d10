# omniforcing in a container, for CPUs or GPUs:
#   docker build -t omniforcing .                            # CPU build of torch
#   docker build -t omniforcing --build-arg TORCH=cuda .     # torch with CUDA; run it with --gpus all
#   docker build --build-arg EXTRAS=serve,telemetry,pipeline # with MLflow, for names such as models:/NAME@champion
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH=cpu
ARG EXTRAS=serve,telemetry

# A user without rights; /cache holds what is fetched from the Hub and from MLflow.
RUN useradd --uid 1000 --create-home omniforcing && install -d -o omniforcing /cache
WORKDIR /home/omniforcing

# Only what the package is made of, so that other changes leave this layer as it is (.dockerignore).
COPY pyproject.toml constraints.txt README.md LICENSE source/
COPY src source/src
RUN case "${TORCH}" in \
      cpu) index="https://download.pytorch.org/whl/cpu" ;; \
      cuda) index="https://pypi.org/simple" ;; \
      *) echo "TORCH is ${TORCH}; it is cpu or cuda" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --constraint source/constraints.txt --extra-index-url "${index}" "./source[${EXTRAS}]" \
    && omniforcing --version

USER 1000
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
VOLUME /cache
EXPOSE 8765
HEALTHCHECK --interval=10s --start-period=120s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/ready', timeout=5)"]
ENTRYPOINT ["omniforcing"]
CMD ["serve", "--host", "0.0.0.0"]
