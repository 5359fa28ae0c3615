#!/bin/sh
# Stands in for a C compiler in the virtual machine: `cc.sh -static -O1 -o PROGRAM SOURCE`.
# The conformance suite compiles its probe; here that was done before the machine was booted.
while [ $# -gt 0 ]; do
    case $1 in
        -o)
            program=$2
            shift
            ;;
        -*) ;;
        *) source=$1 ;;
    esac
    shift
done
if ! cmp -s "$source" /vmtest/probe.c; then
    echo "$source is not the program that was compiled for this machine" >&2
    exit 1
fi
cp /vmtest/probe "$program"
