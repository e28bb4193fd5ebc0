# The agent for arm64 and amd64:  docker buildx build --platform linux/arm64,linux/amd64 -f docker/agent.Dockerfile .
# State (identity, key set, models) lives in a volume: docker run -v headtail:/var/lib/headtail IMAGE run --source ...
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY --from=build /wheels /wheels
COPY constraints/device-py311.txt /wheels/constraints.txt
RUN set -eu; wheel="$(ls /wheels/*.whl)"; \
    pip install --no-cache-dir -c /wheels/constraints.txt "${wheel}[tuf,ort]" pillow; rm -r /wheels; \
    useradd --system --uid 990 headtail; install -d -m 0700 -o headtail /var/lib/headtail
USER headtail
ENV XDG_STATE_HOME=/var/lib OMP_NUM_THREADS=1
VOLUME /var/lib/headtail
ENTRYPOINT ["edge-agent"]
CMD ["run"]
