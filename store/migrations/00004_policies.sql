-- +goose Up

-- Every policy that was activated, whole and with its tests, as a gzipped tar. Never changed.
CREATE TABLE policies (
    revision   text PRIMARY KEY CHECK (revision ~ '^sha256:[0-9a-f]{64}$'),
    archive    bytea NOT NULL,
    created_at timestamptz NOT NULL
);

-- Each time that one was put in force; the newest is. n is the change's revision, so that
-- replicas learn of it as of everything else. A policy_revision of NULL is the built-in one.
CREATE TABLE policy_activations (
    n               bigint PRIMARY KEY,
    policy_revision text REFERENCES policies,
    at              timestamptz NOT NULL,
    activated_by    text NOT NULL,
    note            text NOT NULL DEFAULT '',
    security_fix    boolean NOT NULL DEFAULT false,
    rolled_back     boolean NOT NULL DEFAULT false,
    accepted_tests  text[] NOT NULL DEFAULT '{}'
);

-- Which policy decides on a replica.
ALTER TABLE replicas ADD COLUMN policy_revision text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE replicas DROP COLUMN policy_revision;
DROP TABLE policy_activations, policies;
