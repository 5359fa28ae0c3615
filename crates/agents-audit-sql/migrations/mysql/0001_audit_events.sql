-- MySQL commits each of these at once, so each can be run again after a crash in between.
CREATE TABLE IF NOT EXISTS audit_events (
    -- The order of the trail: commits happen in this order, see `database/mysql.rs`.
    seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    event_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    event_type VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    timestamp DATETIME(6) NOT NULL,
    session_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin,
    agent_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin,
    user_id VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    -- 0 debug, 1 info, 2 warning, 3 error, 4 critical.
    severity SMALLINT NOT NULL,
    -- The event, as it was given. Text and not JSON: it is kept letter by letter.
    record LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    UNIQUE KEY audit_events_event_id (event_id),
    KEY audit_events_session (session_id, seq),
    KEY audit_events_agent (agent_id, seq),
    KEY audit_events_user (user_id, seq),
    KEY audit_events_type (event_type, seq),
    KEY audit_events_timestamp (timestamp),
    KEY audit_events_severity (severity, seq)
) ENGINE = InnoDB;
-- The row that writers lock.
CREATE TABLE IF NOT EXISTS audit_events_writer (id TINYINT NOT NULL PRIMARY KEY) ENGINE = InnoDB;
INSERT IGNORE INTO audit_events_writer (id) VALUES (1);
