package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nacrehq/nacre/runtime/firecracker"
)

// TestInstalledKernel: one that is known to be behind is told from one that is not.
func TestInstalledKernel(t *testing.T) {
	release := strings.Fields(firecracker.PinnedKernelBanner)[2]
	older := strings.Replace(firecracker.PinnedKernelBanner, release, "6.12.99-nacre", 1)
	newer := strings.Replace(firecracker.PinnedKernelBanner, release, "6.13.0-nacre", 1)
	otherCompiler := strings.Replace(firecracker.PinnedKernelBanner, "gcc (", "gcc (another ", 1)
	for name, c := range map[string]struct {
		banner, options string
		behind          string // a part; "" when it is not
	}{
		"another compiler, no word of its options":  {banner: otherCompiler},
		"another compiler, these options":           {banner: otherCompiler, options: firecracker.PinnedKernelOptions},
		"another compiler, unknown options":         {banner: otherCompiler, options: "unknown"},
		"another compiler, another nacre's options": {banner: otherCompiler, options: strings.Repeat("0", 64), behind: "the options of another version"},
		"the pinned source and compiler":            {banner: firecracker.PinnedKernelBanner, behind: "another one all the same"},
		"older":                                     {banner: older, options: "unknown", behind: "older than Linux " + release},
		"newer":                                     {banner: newer},
		"no kernel of Linux's":                      {banner: "something"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, firecracker.KernelName)
			text := []byte("\x7fELF\x00Linux version %s\x00" + c.banner + "\n\x00the rest")
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
			note := func(sum string) {
				if err := os.WriteFile(path+".options", []byte(sum+" "+c.options+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if c.options != "" {
				note(sum(text))
			}
			k, err := firecracker.InstalledKernel(dir)
			if err != nil || k.Pinned || (c.behind == "") != (k.Behind == "") || !strings.Contains(k.Behind, c.behind) {
				t.Errorf("%+v, %v; want %q", k, err, c.behind)
			}
			if c.banner != "something" && !strings.HasPrefix(k.Name, "Linux 6.1") {
				t.Errorf("it is called %q", k.Name)
			}
			if strings.Contains(c.behind, "options of another") { // a note on a kernel that was replaced by hand
				note(strings.Repeat("0", 64))
				if k, err := firecracker.InstalledKernel(dir); err != nil || k.Behind != "" {
					t.Errorf("by the note on another file: %+v, %v", k, err)
				}
			}
		})
	}
	if _, err := firecracker.InstalledKernel(t.TempDir()); err == nil {
		t.Error("a kernel that is not there")
	}
}
