package client_test

import (
	"io"
	"net/http"
	"os"
	"testing"

	"github.com/nacrehq/nacre/client"
	"github.com/nacrehq/nacre/e2e/localcloud"
)

// target is what the suite runs against: the server that NACRE_API_URL and
// NACRE_API_KEY name, or a local one.
func target(t *testing.T) (c *client.Client, live bool) {
	t.Helper()
	if os.Getenv("NACRE_API_URL") == "" || os.Getenv("NACRE_API_KEY") == "" {
		cloud := localcloud.New(t)
		c, err := client.New(client.WithAPIKey(cloud.Key), client.WithAPIURL(cloud.URL), client.WithSandboxURL(cloud.URL))
		if err != nil {
			t.Fatal(err)
		}
		return c, false
	}
	c, err := client.New()
	if err != nil {
		t.Fatal(err)
	}
	return c, true
}

// needLive skips what only a server with machines can show.
func needLive(t *testing.T, live bool) {
	t.Helper()
	if !live {
		t.Skip("NACRE_API_URL and NACRE_API_KEY name no server, and this needs real machines")
	}
}

// sandbox makes one that ends with the test.
func sandbox(t *testing.T, c *client.Client, opts ...client.CreateOption) *client.Sandbox {
	t.Helper()
	sb, err := c.Create(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sb.Kill(noContext) }) // the test may have ended it
	return sb
}

// drain reads a body to its end.
func drain(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
