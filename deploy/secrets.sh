#!/bin/sh
# Makes the passwords of docker-compose.yml, in secrets/, where they are missing. What is there stays as it is.
#
# The directory is closed to others. In it, what PostgreSQL's own container reads is readable, since that runs under
# another user; what ours read belongs to theirs alone, as libpq and `studyhall serve` demand.
set -eu
cd "$(dirname "$0")/.."
mkdir -p secrets
chmod 700 secrets

if [ "$(id -u)" = 0 ]; then
    user=10001:10001
else
    user=$(id -u):$(id -g)
    grep -qs '^STUDYHALL_USER=' .env || echo "STUDYHALL_USER=$user" >>.env
fi

make() { # make NAME MODE: standard input becomes the file, unless it is there
    if [ ! -s "secrets/$1" ]; then
        (umask 077 && cat >"secrets/$1.new")
        chmod "$2" "secrets/$1.new"
        [ "$2" != 600 ] || [ "$(id -u)" != 0 ] || chown "$user" "secrets/$1.new"
        mv "secrets/$1.new" "secrets/$1"
        echo "made secrets/$1"
    fi
}

password() { # of characters that no quoting touches
    LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 32
}

password | make postgres 644
for role in owner worker viewer mlflow; do
    password | make "$role" 644
    printf 'postgres:5432:*:studyhall_%s:%s\n' "$role" "$(cat "secrets/$role")" | make "$role.pgpass" 600
done
password | make sites 600
echo "the password of the sites' user, viewer, is in secrets/sites"
