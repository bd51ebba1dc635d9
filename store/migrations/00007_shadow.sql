-- +goose Up

-- The policy that is asked beside the one in force: the newest is the one that counts, and the
-- one before is deleted with all that came of it. n is the change that began it, revision its
-- last one. The archive goes when it ends.
CREATE TABLE policy_shadows (
    n          bigint PRIMARY KEY,
    revision   bigint NOT NULL,
    candidate  text NOT NULL,
    archive    bytea,
    started_at timestamptz NOT NULL,
    ends_at    timestamptz NOT NULL,
    started_by text NOT NULL,
    note       text NOT NULL,
    share      double precision NOT NULL CHECK (share > 0 AND share <= 1),
    per_second integer NOT NULL CHECK (per_second > 0),
    ended_at   timestamptz,
    ended_by   text NOT NULL DEFAULT '',
    reason     text NOT NULL DEFAULT '',
    why        text NOT NULL DEFAULT ''
);

-- What came of it on each replica, all in all: a replica writes its own row again and again, so
-- that one that is written twice counts once. A replica that starts anew is another one.
CREATE TABLE policy_shadow_replicas (
    shadow         bigint NOT NULL REFERENCES policy_shadows ON DELETE CASCADE,
    replica_id     uuid NOT NULL,
    written_at     timestamptz NOT NULL,
    seen           bigint NOT NULL,
    asked          bigint NOT NULL,
    failed         bigint NOT NULL,
    dropped        bigint NOT NULL,
    undecided      bigint NOT NULL,
    restarts       bigint NOT NULL,
    totals         json NOT NULL,
    took           bigint[] NOT NULL,
    active_took    bigint[] NOT NULL,
    PRIMARY KEY (shadow, replica_id)
);

-- A difference is the same on every replica when all of its description is; id is a hash of that.
-- There is no id of a resource, no address and no path of a request in it.
CREATE TABLE policy_shadow_differences (
    shadow          bigint NOT NULL,
    replica_id      uuid NOT NULL,
    id              uuid NOT NULL,
    organization_id uuid,
    key_id          uuid,
    kind            text NOT NULL,
    description     json NOT NULL,
    requests        bigint NOT NULL CHECK (requests > 0),
    first_seen      timestamptz NOT NULL,
    last_seen       timestamptz NOT NULL,
    PRIMARY KEY (shadow, replica_id, id),
    FOREIGN KEY (shadow, replica_id) REFERENCES policy_shadow_replicas ON DELETE CASCADE
);

-- +goose Down
DROP TABLE policy_shadow_differences, policy_shadow_replicas, policy_shadows;
