-- One row that the health check writes and reads again; at is milliseconds.
CREATE TABLE IF NOT EXISTS scd_probe (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL
);
