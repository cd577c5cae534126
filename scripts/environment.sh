# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
# shellcheck shell=sh
#
# Sourced by the other scripts: finds Python, makes the virtual environment, installs the package.
# Sets $root (the checkout) and $venv.  Needs nothing but PyPI and, on a bare Debian, apt-get.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${QSD_VENV:-$root/.venv}

say() {
    printf '%s\n' "$*" >&2
}

# Installs Debian packages if we may: as root, with apt-get, and not told otherwise.
apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1 || [ -n "${QSD_NO_APT:-}" ]; then
        return 1
    fi
    say "installing packages: $*"
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2; then
        apt-get update -q >&2 || return 1
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
    fi
}

find_python() {
    for candidate in ${QSD_PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

make_venv() {
    python=$(find_python) || {
        apt_install python3 python3-venv || true
        python=$(find_python)
    } || {
        say "Python 3.11 or newer is needed; set QSD_PYTHON to it"
        exit 1
    }
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        rm -rf "$venv"
        apt_install python3-venv || say "python3-venv is missing; as root: apt install python3-venv"
        "$python" -m venv "$venv"
    fi
}

# install_package [EXTRA]: installs the checkout, editable, with an optional set of extras.
install_package() {
    extra=${1:-}
    stamp=$venv/.qsd-installed-${extra:-plain}
    [ -x "$venv/bin/python" ] || make_venv
    if [ ! -e "$stamp" ] || [ "$root/pyproject.toml" -nt "$stamp" ]; then
        say "installing qsd${extra:+ with its $extra tools} into $venv"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check \
            -e "$root${extra:+[$extra]}" >&2
        touch "$stamp"
    fi
}
