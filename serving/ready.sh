#!/bin/bash
# Succeeds if a version of a model is AVAILABLE and, if a label is given, the version with
# that label is.
#
#   ready.sh MODEL [LABEL] [REST_PORT]
#
# The official image has bash and grep, but no curl, no Python and no gRPC client.

# GET over HTTP/1.0: the server closes the connection after its answer.
get() {
  exec 3<>"/dev/tcp/127.0.0.1/${port}" || exit 1
  printf 'GET /v1/models/%s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
  cat <&3
}

model=${1:?the name of the model}
label=${2:-}
port=${3:-8501}

# GetModelStatus answers 200 in every state, so read the state.
get "${model}" | grep --quiet '"state": *"AVAILABLE"' || exit 1

# GetModelStatus ignores labels. GetModelMetadata fails unless the version is AVAILABLE.
[[ -z ${label} ]] || get "${model}/labels/${label}/metadata" | head -n 1 | grep --quiet ' 200 '
