CREATE TABLE IF NOT EXISTS customers (
    id           bigint GENERATED ALWAYS AS IDENTITY (START WITH 501) PRIMARY KEY,
    organization text NOT NULL,
    environment  text NOT NULL CHECK (environment IN ('live', 'test')),
    name         text NOT NULL,
    email        text NOT NULL,
    -- Pages are read in this order.
    UNIQUE (organization, environment, id)
);
