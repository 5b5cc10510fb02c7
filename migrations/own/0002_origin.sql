-- Where this file comes from: decides whether old messages may be cleaned up without being asked.
CREATE TABLE IF NOT EXISTS scd_origin (
    key TEXT NOT NULL PRIMARY KEY,
    value
);
