#!/bin/sh
# Finds a Python that celery_idem can use and hands over to tools/bootstrap.py, which makes .venv.
# POSIX sh, because on a fresh machine this runs before any Python is known to work.
# PYTHON=... names the interpreter; otherwise PATH is searched. Arguments go to bootstrap.py.
set -eu

case $0 in */*) tools=${0%/*} ;; *) tools=. ;; esac
names="python3 python3.14 python3.13 python3.12 python3.11 python3.10 python"
probe='import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 10))'
remedy="install one (for example: apt install python3.12) or name one: PYTHON=/path/to/python3.12"

fail() {
    echo "celery_idem: $*" >&2
    exit 1
}

# Prints the version; exit status 0: new enough. A pyenv shim of a version that is not selected
# exists and is executable, yet prints nothing here.
version_of() {
    "$1" -c "$probe" 2>/dev/null </dev/null
}

can_make_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null </dev/null
}

# Prints every interpreter on PATH, the best name first. The whole PATH is walked for each name,
# since a shim that does not run may hide an interpreter that does.
candidates() {
    for name in $names; do
        rest=$PATH:
        while [ -n "$rest" ]; do
            dir=${rest%%:*}
            rest=${rest#*:}
            if [ -n "$dir" ] && [ -f "$dir/$name" ] && [ -x "$dir/$name" ]; then
                echo "$dir/$name"
            fi
        done
    done
}

named_python() {
    found=$(command -v -- "$PYTHON" 2>/dev/null) || fail "PYTHON=$PYTHON is not a program; $remedy"
    if version=$(version_of "$found"); then
        chosen=$found
    elif [ -n "$version" ]; then
        fail "PYTHON=$PYTHON is Python $version, but 3.10 or newer is needed; $remedy"
    else
        fail "PYTHON=$PYTHON does not run; $remedy"
    fi
}

search_python() {
    chosen='' spare='' old=''
    while IFS= read -r candidate; do
        if version=$(version_of "$candidate"); then
            if can_make_venv "$candidate"; then
                chosen=$candidate
                return
            fi
            spare=${spare:-$candidate}
        elif [ -n "$version" ]; then
            old=${old:-"Python $version ($candidate)"}
        fi
    done <<LIST
$(candidates)
LIST
    # Without venv it may still do: bootstrap.py knows other ways, or says what to install.
    chosen=$spare
    if [ -z "$chosen" ]; then
        fail "Python 3.10 or newer is needed, found ${old:-no Python} on PATH; $remedy"
    fi
}

if [ -n "${PYTHON:-}" ]; then
    named_python
else
    search_python
fi
exec "$chosen" "$tools/bootstrap.py" "$@"
