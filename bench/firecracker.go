package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// benchFirecracker: what a machine of the other driver costs, by a test of the driver's
// that measures inside the host that can run it. Where that is an emulated one each
// figure says so: it shows the proportions, and nothing of a real host.
func benchFirecracker(ctx context.Context, b *bench) error {
	c := exec.CommandContext(ctx, "go", "test", "-count", "1", "-v", "-timeout", "40m", "-run", "^TestFigures$", "./runtime/firecracker")
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "NACRE_FIGURES="+strconv.Itoa(b.samples(5)))
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out[max(0, len(out)-2000):])
	}
	found := false
	for line := range strings.Lines(string(out)) {
		_, text, ok := strings.Cut(line, "FIGURE ")
		if !ok {
			continue
		}
		var f struct {
			How, Name, Unit string
			Samples         series
		}
		if err := json.Unmarshal([]byte(text), &f); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		b.report.add("Firecracker on "+f.How+": "+f.Name, f.Unit, f.Samples, "", "")
		found = true
	}
	if !found {
		return fmt.Errorf("nothing was measured: %s", out)
	}
	return nil
}
