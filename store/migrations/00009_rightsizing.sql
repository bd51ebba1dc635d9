-- +goose Up

-- Replicas that run wait for these locks too, with their heartbeats.
SET LOCAL lock_timeout = '3s';

-- When a scope was last given to a key that had it not; NULL for a key that has those it was
-- made with, or fewer.
ALTER TABLE api_keys ADD COLUMN scopes_since timestamptz;

-- Scopes that were taken from keys because nothing recorded needed them, so that each can be
-- undone: what the key had, what it was left with, and why. Kept for 400 days.
CREATE TABLE key_narrowings (
    key_id          uuid NOT NULL REFERENCES api_keys,
    revision        bigint NOT NULL,
    organization_id uuid NOT NULL REFERENCES organizations,
    narrowed_at     timestamptz NOT NULL,
    narrowed_by     text NOT NULL,
    scopes_before   text[] NOT NULL,
    scopes_after    text[] NOT NULL,
    key_version     integer NOT NULL,
    evidence        json NOT NULL,
    undone_at       timestamptz,
    undone_by       text,
    PRIMARY KEY (key_id, revision)
);
CREATE INDEX key_narrowings_narrowed_at ON key_narrowings (narrowed_at);

-- What a replica counted before it had applied this revision is written.
ALTER TABLE replicas ADD COLUMN counted_revision bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE replicas DROP COLUMN counted_revision;
ALTER TABLE api_keys DROP COLUMN scopes_since;
DROP TABLE key_narrowings;
