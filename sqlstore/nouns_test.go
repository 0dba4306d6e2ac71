package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
)

func TestRequestStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestRequestStore(t, func(t *testing.T) nacre.RequestStore { return open(t, withKey) })
	})
}

func TestSecretStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestSecretStore(t, func(t *testing.T) nacretest.SecretRecords { return open(t, withKey) })
	})
}

func TestPreviewStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestPreviewStore(t, func(t *testing.T) nacretest.PreviewRecords { return open(t, Options{}) })
	})
}

func TestUsageStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestUsageStore(t, func(t *testing.T) nacre.UsageStore { return open(t, Options{}) })
	})
}

func TestDeploymentStore(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestDeploymentStore(t, func(t *testing.T) nacre.DeploymentStore { return open(t, withKey) })
	})
}

func TestActivityLog(t *testing.T) {
	engines(t, func(t *testing.T, open func(testing.TB, Options) *DB) {
		nacretest.TestActivityLog(t, func(t *testing.T) nacretest.ActivityLog { return open(t, Options{}) })
	})
}

// TestSealedAtRest: values, kept answers and environments of deployments are not in
// the database as they are, cannot be moved between records, and are there after a
// restart.
func TestSealedAtRest(t *testing.T) {
	urls(t, func(t *testing.T, url string) {
		db := reopen(t, url, withKey)
		team, now := nacre.NewTeamID(), time.Unix(1e9, 0)
		box := sample()
		box.TeamID = team
		secrets := [2]nacre.Secret{}
		for i, name := range []string{"a", "b"} {
			secrets[i] = nacre.Secret{ID: nacre.NewSecretID(), TeamID: team, Name: name}
			if err := db.InsertSecret(t.Context(), secrets[i], "PLAINTEXT-"+name); err != nil {
				t.Fatal(err)
			}
		}
		binding := nacre.SecretBinding{ID: nacre.NewBindingID(), TeamID: team, Secret: secrets[0].ID, Sandbox: box.ID, Placeholder: "ph"}
		r := nacre.KeptRequest{RequestKey: nacre.RequestKey{TeamID: team, Route: "r", Key: "k"}, Holder: "h", CreatedAt: now}
		_, _, claimErr := db.ClaimRequest(t.Context(), r, now, now)
		r.Status, r.Answer = 201, []byte("PLAINTEXT-answer")
		err := errors.Join(db.Insert(t.Context(), box), db.BindSecret(t.Context(), binding), claimErr, db.AnswerRequest(t.Context(), r),
			db.InsertDeployment(t.Context(), nacre.Deployment{ID: "d", TeamID: team, Name: "n", Env: map[string]string{"K": "PLAINTEXT-env"}}))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, query := range []string{`SELECT value FROM secrets`, `SELECT answer FROM requests`, `SELECT env FROM deployments`} {
			err := db.reads.each(t.Context(), func(rows *sql.Rows) error {
				var kept []byte
				err := rows.Scan(&kept)
				if n++; bytes.Contains(kept, []byte("PLAINTEXT")) {
					t.Errorf("%s: %q", query, kept)
				}
				return err
			}, query)
			if err != nil {
				t.Fatal(err)
			}
		}
		if n != 4 {
			t.Errorf("%d values were looked at", n)
		}
		again := reopen(t, url, withKey)
		kept, claimed, err := again.ClaimRequest(t.Context(), r, now, now)
		if err != nil || claimed || string(kept.Answer) != "PLAINTEXT-answer" {
			t.Errorf("after a restart: %+v, %v, %v", kept, claimed, err)
		}
		if v, _, err := again.SecretValue(t.Context(), box.ID, "ph"); err != nil || v != "PLAINTEXT-a" {
			t.Errorf("after a restart: %q, %v", v, err)
		}
		err = again.write(t.Context(), func(ctx context.Context, c conn) error {
			_, err := c.exec(ctx, `UPDATE secrets SET value = (SELECT value FROM secrets WHERE id = ?) WHERE id = ?`, string(secrets[1].ID), string(secrets[0].ID))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if v, _, err := again.SecretValue(t.Context(), box.ID, "ph"); !nacre.IsCode(err, nacre.CodeInternal) {
			t.Errorf("a value that was moved to another record: %q, %v", v, err)
		}
	})
}
