-- +goose Up

-- Denials, and a sample of what was allowed, for a few days: what was decided and why, never
-- what was presented, the path or the whole address. No references: rows come by the second
-- from every replica, and one that cannot be explained any more must not stop the others.
-- The id is a UUIDv7, so that the oldest are at one end of its index.
CREATE TABLE decisions (
    id              uuid PRIMARY KEY,
    at              timestamptz NOT NULL,
    organization_id uuid,
    key_id          uuid,
    secret_id       uuid,
    caller_id       uuid,
    environment     text NOT NULL,
    method          text NOT NULL,
    route           text NOT NULL,
    action          text NOT NULL,
    code            text NOT NULL CHECK (code <> ''),
    status          smallint NOT NULL,
    reasons         text[] NOT NULL,
    required        text[] NOT NULL,
    missing         text[] NOT NULL,
    policy_revision text NOT NULL,
    network         cidr,
    degraded        text[] NOT NULL,
    browser         boolean NOT NULL
);

-- +goose Down
DROP TABLE decisions;
