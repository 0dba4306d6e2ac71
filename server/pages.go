package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/runtime/firecracker"
)

// largePages is the one size that --template-pages knows.
const largePages = "2M"

// parseTemplatePages reads --template-pages: the templates whose sandboxes have large
// pages.
func parseTemplatePages(entries []string) (templates []string, err error) {
	for _, e := range entries {
		template, size, _ := strings.Cut(e, "=")
		if !isBuiltin(template) || size != largePages {
			return nil, fmt.Errorf("--template-pages %q: want TEMPLATE=%s, of a built-in template, such as python=%s; there is no other size", e, largePages, largePages)
		}
		templates = append(templates, template)
	}
	return templates, nil
}

// pages tells whether one of the template's names is among them.
func (b builtin) pages(templates []string) bool {
	return slices.ContainsFunc(b.names, func(n string) bool { return slices.Contains(templates, n) })
}

// mayHavePages refuses large pages for a template whose sandboxes cannot have them. on is
// what they are made of.
func mayHavePages(template string, res nacre.Resources, on nacre.Capabilities) error {
	switch {
	case !res.HugePages:
	case !on.HugePages:
		return fmt.Errorf("--template-pages %s=%s: the runtime %s has no such pages here; Firecracker's machines have, on Linux 6.1 or later (--template-runtime %s=firecracker)",
			template, largePages, on.Runtime, template)
	case res.MemoryMiB%2 != 0:
		return fmt.Errorf("--template-pages %s=%s: its sandboxes have %d MiB of memory; with pages of 2 MiB that must be an even number (--memory-mib)", template, largePages, res.MemoryMiB)
	}
	return nil
}

// pageFindings say whether the host has pages for the templates that ask for them.
func pageFindings(c Config, count func() (free, total int, err error)) []Finding {
	templates, _ := parseTemplatePages(c.TemplatePages) // validated by Load
	if len(templates) == 0 {
		return nil
	}
	most := 0
	for _, b := range builtins {
		if b.pages(templates) {
			most = max(most, firecracker.HugePagesFor(b.resources(c).MemoryMiB))
		}
	}
	free, total, err := count()
	out := Finding{ID: "large pages", Level: "ok", What: fmt.Sprintf("%d of the host's %d pages of 2 MiB are free, and a sandbox of --template-pages takes up to %d", free, total, most)}
	if err != nil {
		out.What = "the host's pages of 2 MiB cannot be counted: " + err.Error()
	}
	if err != nil || free < most {
		out.Level = "warn"
		out.Advice = fmt.Sprintf("creates of these templates are refused (429) until there are: `sysctl vm.nr_hugepages=N`, N being %d for each sandbox that runs, and the same line in /etc/sysctl.d, where it is early enough after a boot for memory to be in one piece; what is set apart is nobody else's memory", most)
	}
	return []Finding{out}
}
