-- Which tenants have had their sample rows, and so get no more.
CREATE TABLE IF NOT EXISTS samples (
    app          text NOT NULL,
    organization text NOT NULL,
    environment  text NOT NULL,
    PRIMARY KEY (app, organization, environment)
);
