package server

import (
	"errors"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
)

// TestTemplatePages: large pages are for templates whose sandboxes can have them, and who
// asks for others is told what to do before there is a server.
func TestTemplatePages(t *testing.T) {
	even, odd := nacre.Resources{MemoryMiB: 512, HugePages: true}, nacre.Resources{MemoryMiB: 513, HugePages: true}
	has, lacks := nacre.Capabilities{Runtime: "firecracker", HugePages: true}, nacre.Capabilities{Runtime: "gvisor"}
	for _, c := range []struct {
		res  nacre.Resources
		on   nacre.Capabilities
		want string
	}{
		{even, has, ""},
		{nacre.Resources{MemoryMiB: 513}, lacks, ""},
		{even, lacks, "--template-runtime python=firecracker"},
		{odd, has, "--memory-mib"},
	} {
		err := mayHavePages("python", c.res, c.on)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	cfg := Config{TemplatePages: []string{"moru-ai/base=2M"}, MemoryMiB: 512}
	for _, b := range builtins {
		if got, want := b.resources(cfg).HugePages, b.names[0] == "base"; got != want {
			t.Errorf("%s: %t", b.names[0], got)
		}
	}
}

// TestPageFindings: an operator hears of pages when a template asks for them, and what to
// do when there is no room for one sandbox.
func TestPageFindings(t *testing.T) {
	asks := Config{TemplatePages: []string{"base=2M"}, MemoryMiB: 512}
	for _, c := range []struct {
		cfg   Config
		free  int
		err   error
		level string // "" for nothing to say
	}{
		{Config{MemoryMiB: 512}, 0, nil, ""},
		{asks, 260, nil, "ok"},
		{asks, 259, nil, "warn"},
		{asks, 999, errors.New("no such thing"), "warn"},
	} {
		got := pageFindings(c.cfg, func() (int, int, error) { return c.free, 300, c.err })
		level := ""
		if len(got) > 0 {
			level = got[0].Level
		}
		if level != c.level || level == "warn" && !strings.Contains(got[0].Advice, "vm.nr_hugepages") {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
