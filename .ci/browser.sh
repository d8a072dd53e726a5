#!/bin/sh
# The browser of tests/page, where it can be installed: Debian's Chromium, and a font that has Chinese characters.
if command -v chromium >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null && apt-get install -qq -y --no-install-recommends chromium fonts-wqy-zenhei >/dev/null
fi
if ! command -v chromium >/dev/null; then
    echo "*** NO CHROMIUM: THE BROWSER TESTS IN tests/page WILL BE SKIPPED (Debian: apt-get install chromium) ***" >&2
fi
