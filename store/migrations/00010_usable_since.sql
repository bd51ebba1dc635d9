-- +goose Up

-- Replicas that run wait for these locks too, with their heartbeats.
SET LOCAL lock_timeout = '3s';

-- When a key could be used again that was disabled or expired, or whose organization was
-- suspended; NULL for what never was. Before that, that it was not used tells nothing.
ALTER TABLE api_keys ADD COLUMN usable_since timestamptz;
ALTER TABLE organizations ADD COLUMN usable_since timestamptz;

-- +goose Down
ALTER TABLE organizations DROP COLUMN usable_since;
ALTER TABLE api_keys DROP COLUMN usable_since;
