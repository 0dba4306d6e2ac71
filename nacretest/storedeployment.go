package nacretest

import (
	"fmt"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestDeploymentStore is the contract of nacre.DeploymentStore.
func TestDeploymentStore(t *testing.T, open func(t *testing.T) nacre.DeploymentStore) {
	store := open(t)
	team, other := nacre.NewTeamID(), nacre.NewTeamID()
	d := nacre.Deployment{ID: nacre.NewDeploymentID(), TeamID: team, Name: "web-1", Source: nacre.NewSandboxID(), Sandbox: nacre.NewSandboxID(),
		Snapshot: nacre.NewSnapshotID(), Preview: nacre.NewPreviewID(), Restarts: 3, State: nacre.DeploymentLive, Detail: "é\x00", Build: "make", Start: "./run", Dir: "/workspace",
		Port: 3000, Health: "/healthz", Env: map[string]string{"TOKEN": "s3cret"}, Revision: 1, CreatedAt: storeEpoch, UpdatedAt: storeEpoch}
	if err := store.InsertDeployment(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{string(d.ID), d.Name} {
		got, err := store.GetDeployment(t.Context(), team, key)
		if err != nil {
			t.Fatal(err)
		}
		expectSame(t, "GetDeployment "+key, got, d)
		_, err = store.GetDeployment(t.Context(), other, key)
		expectCode(t, "another team's GetDeployment", err, nacre.CodeNotFound)
	}
	twin := d
	twin.ID = nacre.NewDeploymentID()
	expectCode(t, "the same name again", store.InsertDeployment(t.Context(), twin), nacre.CodeConflict)
	twin.TeamID = other
	if err := store.InsertDeployment(t.Context(), twin); err != nil {
		t.Errorf("the name in another team: %v", err)
	}
	got, err := store.UpdateDeployment(t.Context(), team, d.ID, func(d *nacre.Deployment) error {
		d.Revision, d.State, d.Env, d.UpdatedAt = 2, nacre.DeploymentFailed, nil, storeEpoch.Add(time.Second)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := store.Deployments(t.Context(), team, "")
	if err != nil {
		t.Fatal(err)
	}
	expectSame(t, "Deployments", list, []nacre.Deployment{got})
	if list, _ := store.Deployments(t.Context(), team, nacre.NewSandboxID()); len(list) != 0 {
		t.Errorf("of another source: %+v", list)
	}
	_, err = store.UpdateDeployment(t.Context(), other, d.ID, func(*nacre.Deployment) error { return nil })
	expectCode(t, "another team's update", err, nacre.CodeNotFound)
	_, err = store.UpdateDeployment(t.Context(), team, d.ID, func(d *nacre.Deployment) error { d.Name = "x"; return nil })
	expectCode(t, "another name", err, nacre.CodeInvalid)
	for _, name := range []string{"", "-a", "A", "a.b"} {
		bad := d
		bad.ID, bad.Name = nacre.NewDeploymentID(), name
		expectCode(t, fmt.Sprintf("name %q", name), store.InsertDeployment(t.Context(), bad), nacre.CodeInvalid)
	}
	expectCode(t, "another team's delete", store.DeleteDeployment(t.Context(), other, d.ID), nacre.CodeNotFound)
	if err := store.DeleteDeployment(t.Context(), team, d.ID); err != nil {
		t.Fatal(err)
	}
	expectCode(t, "a second delete", store.DeleteDeployment(t.Context(), team, d.ID), nacre.CodeNotFound)
}
