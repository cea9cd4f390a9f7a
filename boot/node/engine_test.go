package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

// TestUseEngine switches engines, which is refused while a node runs.
func TestUseEngine(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	for _, engine := range []Engine{EngineOwn, EngineKernel, EngineKernel, EngineOwn} {
		if err := s.UseEngine(ctx, engine); err != nil {
			t.Fatal(engine, err)
		}
	}
	if _, err := s.AddNode(ctx, by, mac1, NodeChange{Name: ptr("n1")}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.booter(nil).Boot(ctx, mac1.HardwareAddr(), client1, pxe.IPXE); err != nil {
		t.Fatal(err)
	}
	if err := s.UseEngine(ctx, EngineOwn); err != nil {
		t.Error(err)
	}
	err := s.UseEngine(ctx, EngineKernel)
	refused, ok := errors.AsType[*EngineError](err)
	if !ok || refused.Have != EngineOwn || refused.Want != EngineKernel || len(refused.Live) != 1 {
		t.Fatal(err)
	}
	for _, word := range []string{"n1", "--nfs-engine sidus", "sidus node delete"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is missing in: %v", word, err)
		}
	}
	if err := s.DeleteNode(ctx, by, "n1", true); err != nil {
		t.Fatal(err)
	}
	if err := s.UseEngine(ctx, EngineKernel); err != nil {
		t.Error(err)
	}
}

// TestBooterRoot boots from what another engine serves.
func TestBooterRoot(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	if _, err := s.AddNode(ctx, by, mac1, NodeChange{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SetNetwork(ctx, by, "lab", NetworkChange{NFSOptions: ptr([]string{"nconnect=4"})}); err != nil {
		t.Fatal(err)
	}
	booter := s.booter(nil)
	booter.Root = func(_ context.Context, snapshot store.SnapshotID) (string, []string, error) {
		return "/exports/" + string(snapshot), []string{"port=2049", "mountport=20048"}, nil
	}
	c, err := booter.Boot(ctx, mac1.HardwareAddr(), client1, pxe.IPXE)
	if err != nil {
		t.Fatal(err)
	}
	line, err := protocol.ParseCommandLine(c.CommandLine)
	if err != nil || line.NFSPath != "/exports/"+string(id(1)) || strings.Join(line.NFSOptions, " ") != "nconnect=4 port=2049 mountport=20048" {
		t.Errorf("%v: %s", err, c.CommandLine)
	}
	booter.Root = func(context.Context, store.SnapshotID) (string, []string, error) {
		return "", nil, store.ErrUnavailable
	}
	if c, err := booter.Boot(ctx, mac1.HardwareAddr(), client1, pxe.IPXE); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("what cannot be exported is booted: %v, %+v", err, c)
	}
}
