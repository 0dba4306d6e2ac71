package miosa

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/nacrehq/nacre/api"
)

// capabilities are the actions that the MCP server of the product asks for before
// each of its calls. A key may do all of them.
var capabilities = []string{
	"sandbox.create", "sandbox.get", "sandbox.list", "sandbox.exec", "sandbox.destroy", "sandbox.pause",
	"sandbox.resume", "sandbox.write.file", "sandbox.read.file", "sandbox.list.files", "sandbox.upload",
	"sandbox.python", "sandbox.logs", "sandbox.expose", "sandbox.deploy", "sandbox.snapshot.create",
	"sandbox.snapshot.list", "sandbox.snapshot.restore", "sandbox.template.list", "sandbox.template.get",
	"sandbox.template.create", "sandbox.template.builds", "product.template.list",
}

type capability struct {
	Name        string `json:"name"`
	Fingerprint string `json:"fingerprint"`
}

func (a *API) actionCatalogue(c *api.Call) error {
	out := make([]capability, 0, len(capabilities))
	for _, name := range capabilities {
		sum := sha256.Sum256([]byte(name))
		out = append(out, capability{name, "sha256:" + hex.EncodeToString(sum[:])})
	}
	return list(c, out)
}

// authorizeAction allows: what a key may not do, the action's own route refuses.
func (a *API) authorizeAction(c *api.Call) error {
	return c.JSON(http.StatusOK, map[string]any{"data": map[string]string{"decision": "allow"}})
}
