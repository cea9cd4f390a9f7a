#!/bin/sh
# The imports point one way: backends → image/store; image → image; export and
# boot → image; cmd and tests → all.
set -eu
status=0
refuse() { # package pattern, forbidden pattern, why
	found=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}{{"\n"}}{{end}}' ./... |
		grep -E "^$1[^ ]* $2" || true)
	if [ -n "$found" ]; then
		echo "imports: $3:" >&2
		echo "$found" >&2
		status=1
	fi
}
refuse 'sidus/image/store' '([a-z]+\.[a-z]+/|sidus/)' 'the storage contract imports the standard library only' 2>/tmp/sidus-imports.$$ || true
# The conformance suite and the fake are users of the contract.
if grep -Ev 'imports:|image/store/(storetest|memstore)' /tmp/sidus-imports.$$ >&2; then status=1; else status=0; fi
rm -f /tmp/sidus-imports.$$
refuse 'sidus/(btrfs|zfs|lvm)' 'sidus/(boot|export|cmd|btrfs|zfs|lvm|image/(catalog|index|build)|image$)' 'a backend knows the storage contract and the tool wrapper only'
refuse 'sidus/image' 'sidus/(boot|export|cmd|btrfs|zfs|lvm)' 'image does not know who serves it, nor which store it has'
refuse 'sidus/(boot|export)' 'sidus/(cmd|btrfs|zfs|lvm)' 'the front end does not know which store there is'
exit $status
