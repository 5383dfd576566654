#!/bin/bash
# Test certificates for TLS: an authority, a server's and a client's, and the matching
# ssl.config. They last 30 days and their keys have no password. For a real server use
# your own authority.
#
#   make_test_certificates.sh FOLDER [HOST...]
#
# HOST: the names and addresses of the server, besides localhost.
set -euo pipefail
umask 077

folder=${1:?the folder to write to}
shift
mkdir -p "${folder}"
cd "${folder}"

names=DNS:localhost,IP:127.0.0.1
for host in "$@"; do
  if [[ ${host} =~ ^[0-9.]+$ || ${host} == *:* ]]; then
    names+=",IP:${host}"
  else
    names+=",DNS:${host}"
  fi
done

# sign NAME EXTENSIONS: NAME.key and NAME.pem, signed by the authority.
sign() {
  openssl req -new -newkey rsa:2048 -nodes -subj "/CN=$1" \
    -keyout "$1.key" -out "$1.request"
  openssl x509 -req -in "$1.request" -CA ca.pem -CAkey ca.key -days 30 \
    -extfile <(printf '%s\n' "$2") -out "$1.pem"
  rm "$1.request"
}

# field NAME FILE: a file as a field of a text proto, one string per line.
field() {
  printf '%s:\n' "$1"
  sed 's/.*/  "&\\n"/' "$2"
}

openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=branchy test authority" \
  -days 30 -keyout ca.key -out ca.pem
sign server "subjectAltName=${names}"
sign client "extendedKeyUsage=clientAuth"
{
  field server_key server.key
  field server_cert server.pem
  field custom_ca ca.pem
  printf 'client_verify: true\n'
} > ssl.config
printf 'Wrote ca.pem, {server,client}.{key,pem} and ssl.config to %s.\n' "${folder}"
