#!/bin/bash
# Begins a study, or goes on with it where it is there already: what a batch job calls each time.
#
#   run_or_resume.sh FILE NAME [WORD...]     further words are for `nas run`, as --set KEY=VALUE
#
# NAS_ROOT says where studies are, on a file system that all nodes mount. The file's ray.address is
# set to auto, so that each attempt joins the cluster that RAY_ADDRESS names.
set -eu
file=$1 name=$2
shift 2
root=${NAS_ROOT:-studies}
if [ -f "$root/$name/study.json" ]; then
    exec nas resume "$name" --root "$root"
fi
exec nas run "$file" --name "$name" --root "$root" --set ray.address=auto "$@"
