package node

import (
	"errors"
	"strings"
	"testing"

	"sidus/boot/pxe"
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
