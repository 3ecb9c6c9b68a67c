# Two stages: the first installs into one folder, the second holds that folder and nothing that builds.

FROM docker.io/library/python:3.12-slim AS build

# pip lives in a venv of its own, so that the one to be shipped never holds it.
RUN python -m venv /pip && python -m venv --without-pip /opt/archiver
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The locked dependencies come before the code: a layer that a change of code leaves as it is.
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN /pip/bin/pip install --require-hashes -r requirements/build.txt \
 && /pip/bin/pip --python /opt/archiver/bin/python install --no-compile --require-hashes -r requirements/runtime.txt

COPY pyproject.toml ./
COPY archiver archiver
# Bytecode is compiled here, since a read-only root lets nobody compile later; "unchecked" because
# copying between the stages may change the sources' times.
RUN /pip/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /pip/bin/pip --python /opt/archiver/bin/python install --no-compile --no-deps --no-index /wheel/*.whl \
 && /opt/archiver/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/archiver/lib


FROM docker.io/library/python:3.12-slim

# The base image's own pip goes, and so does every way to be someone: a number with no home and no shell.
RUN rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/bin/pip* \
 && useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin archiver

COPY --from=build /opt/archiver /opt/archiver
ENV PATH=/opt/archiver/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Without these a worker's freed memory stays with its thread: glibc keeps an arena for each, and the
# allocator in pyreqwest gives nothing back for a while.
ENV MALLOC_ARENA_MAX=2 MIMALLOC_ALLOW_THP=0 MIMALLOC_PURGE_DELAY=0

# A number, so that runAsNonRoot can be checked without reading the image's passwd.
USER 10001:10001
WORKDIR /

# /metrics, /healthz and /readyz of `run`. There is no HEALTHCHECK: most of the verbs serve nothing,
# and Kubernetes asks /healthz itself.
EXPOSE 9464

ENTRYPOINT ["archiver"]
CMD ["run"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="call-recording-archiver" \
      org.opencontainers.image.description="Archives call recordings into S3, with a signed manifest" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
