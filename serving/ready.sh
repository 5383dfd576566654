#!/bin/bash
# Succeeds when a version of a model is AVAILABLE and, if a label is given, when the
# version behind that label is.
#
#   ready.sh MODEL [LABEL] [REST_PORT]
#
# The official image has bash and grep, but no curl, no Python and no gRPC client.

# GET over HTTP/1.0: the server closes the connection behind its answer.
get() {
  exec 3<>"/dev/tcp/127.0.0.1/${port}" || exit 1
  printf 'GET /v1/models/%s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
  cat <&3
}

model=${1:?the name of the model}
label=${2:-}
port=${3:-8501}

# GetModelStatus. It answers 200 whatever the state, so the state has to be read.
get "${model}" | grep --quiet '"state": *"AVAILABLE"' || exit 1

# GetModelStatus knows no labels. GetModelMetadata fails unless the version is AVAILABLE.
[[ -z ${label} ]] || get "${model}/labels/${label}/metadata" | head -n 1 | grep --quiet ' 200 '
