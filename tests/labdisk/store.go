package labdisk

// Store is where a store of a kind that this machine's kernel may lack is made.
type Store struct {
	Make   string // the shell's commands that make it on the empty disk /dev/vdc
	Option string // of `sidus init`, for At
	At     string
}

// Stores are the kinds that a machine of this package has.
var Stores = map[string]Store{
	"zfs": {"zpool create -O mountpoint=none tank /dev/vdc", "--dataset", "tank/sidus"},
	"lvm": {"vgcreate -q --metadatasize 64m vg /dev/vdc && lvcreate -q --type thin-pool --extents 95%FREE --name pool vg", "--thin-pool", "vg/pool"},
}
