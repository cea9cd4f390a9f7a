package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFindSecrets(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	padding := strings.Repeat("MIIEvQ==\n", 10)
	write("etc/shadow", "root:$y$j9T$abc$def:19000::::::\ndaemon:*:19000::::::\nlocked:!$6$abc$def:19000::::::\nnobody:!:19000::::::\n")
	write("etc/gshadow", "root:*::\n")
	write("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
	write("etc/ssh/ssh_host_ed25519_key", "-----BEGIN OPENSSH PRIVATE KEY-----\n"+padding)
	write("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA"+padding)
	write("etc/munge/munge.key", "0123456789abcdef")
	write("etc/krb5.keytab", "\x05\x02")
	write("etc/ssl/private/server.pem", "-----BEGIN CERTIFICATE-----\n"+padding+"-----END CERTIFICATE-----\n-----BEGIN RSA PRIVATE KEY-----\r\n"+padding)
	write("root/.ssh/id_rsa", "-----BEGIN OPENSSH PRIVATE KEY-----\n"+padding)
	write("etc/notes", "a line that quotes -----BEGIN RSA PRIVATE KEY----- is none\n"+padding)
	write("usr/lib/python3/test/key.pem", "-----BEGIN PRIVATE KEY-----\n"+padding) // everybody has it
	if err := os.Symlink("/etc", filepath.Join(root, "srv")); err != nil {
		t.Fatal(err) // a link must not lead to this machine's own keys
	}
	find := func(allowed ...string) []string {
		t.Helper()
		secrets, err := FindSecrets(t.Context(), root, allowed)
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for _, s := range secrets {
			paths = append(paths, s.Path)
		}
		slices.Sort(paths)
		return paths
	}
	want := []string{"/etc/krb5.keytab", "/etc/munge/munge.key", "/etc/shadow", "/etc/ssh/ssh_host_ed25519_key", "/etc/ssl/private/server.pem", "/root/.ssh/id_rsa"}
	if got := find(); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if got := find("/etc/s*", "/etc/munge/munge.key"); slices.Contains(got, "/etc/shadow") || slices.Contains(got, "/etc/munge/munge.key") || len(got) != 4 {
		t.Errorf("with exceptions: %q", got)
	}
	if got := find("*"); len(got) != 0 {
		t.Errorf("everything is allowed, and yet: %q", got)
	}
	if _, err := FindSecrets(t.Context(), root, []string{"[a"}); err == nil {
		t.Error("a pattern that is none is taken")
	}
	secrets, _ := FindSecrets(t.Context(), root, nil)
	text := (&SecretsError{Snapshot: Snapshot{Tree: "debian", Number: 3}, Secrets: secrets}).Error()
	for _, part := range []string{"debian@3", "password hash of root, locked", "--allow-secret"} {
		if !strings.Contains(text, part) {
			t.Errorf("the message lacks %q:\n%s", part, text)
		}
	}
}
