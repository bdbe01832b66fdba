#!/usr/bin/env bash
# Build the peer that our numbers are compared with: llama.cpp's own llama-perplexity, of the very
# release that the engine uses, into a cache outside the checkout. The last line printed is its path.
#
#   benchmarks/build_peer.sh
#
# KLDCLOUD_CACHE  where to build (default ~/.cache/kldcloud)
# PYTHON          whose pip fetches the source (default python3)
set -euo pipefail

version=0.3.36
cache=${KLDCLOUD_CACHE:-$HOME/.cache/kldcloud}
home=$cache/peer/$version
build=$home/build
binary=$build/bin/llama-perplexity
python=${PYTHON:-python3}

say() { echo "build_peer: $*" >&2; }

if [ -x "$binary" ]; then
    say "built already"
    echo "$binary"
    exit 0
fi

if ! command -v cmake >/dev/null; then
    say "cmake is missing; install it (apt install cmake, brew install cmake, pip install cmake)"
    exit 2
fi
if ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null
then
    say "no C++ compiler; install one (apt install g++, xcode-select --install)"
    exit 2
fi

mkdir -p "$home"
source=$home/llama_cpp_python-$version
if [ ! -f "$source/vendor/llama.cpp/CMakeLists.txt" ]; then
    say "fetching the source of llama-cpp-python $version"
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
        --dest "$home" "llama-cpp-python==$version" >&2
    # Unpacked beside its name and then renamed: an interrupted run leaves no half of a tree.
    rm -rf "$home/unpacking"
    mkdir "$home/unpacking"
    tar -xzf "$home/llama_cpp_python-$version.tar.gz" -C "$home/unpacking"
    rm -rf "$source"
    mv "$home/unpacking/llama_cpp_python-$version" "$source"
    rmdir "$home/unpacking"
fi

generator=()
if command -v ninja >/dev/null; then
    generator=(-G Ninja)
fi
say "building in $build; this takes some minutes"
cmake -S "$source/vendor/llama.cpp" -B "$build" ${generator[@]+"${generator[@]}"} \
    -DCMAKE_BUILD_TYPE=Release \
    -DLLAMA_BUILD_TOOLS=ON \
    -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_OPENSSL=OFF \
    -DBUILD_SHARED_LIBS=ON >&2
cmake --build "$build" --target llama-perplexity --parallel "$(nproc 2>/dev/null || echo 4)" >&2

echo "$binary"
