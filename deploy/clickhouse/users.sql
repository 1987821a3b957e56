-- Who may do what on a ClickHouse server that keeps Nimbus's job output. Run as an administrator, before policies.sql and
-- after `nimbus logs migrate` has made the tables once. Another database or table: replace nimbus.ci_logs everywhere.
-- The server refuses a user until 'SHA256 OF ITS PASSWORD' is replaced: printf %s "$PASSWORD" | sha256sum

-- The service: writes rows and links, reads what readers ask for, changes no table.
CREATE SETTINGS PROFILE IF NOT EXISTS nimbus_service SETTINGS
    allow_ddl = 0 CONST,
    allow_introspection_functions = 0 CONST,
    max_execution_time = 30 MAX 300,
    max_memory_usage = 4294967296 MAX 4294967296;

CREATE ROLE IF NOT EXISTS nimbus_writer;

GRANT SELECT, INSERT ON nimbus.ci_logs TO nimbus_writer;

GRANT SELECT, INSERT ON nimbus.ci_logs_links TO nimbus_writer;

GRANT SELECT ON nimbus.ci_logs_migrations TO nimbus_writer;

CREATE USER IF NOT EXISTS nimbus_logs
    IDENTIFIED WITH sha256_hash BY 'SHA256 OF ITS PASSWORD'
    DEFAULT ROLE nimbus_writer
    SETTINGS PROFILE 'nimbus_service';

GRANT nimbus_writer TO nimbus_logs;

-- Whoever runs `nimbus logs migrate`: makes and changes these tables, and none other.
CREATE ROLE IF NOT EXISTS nimbus_migrator;

GRANT CREATE DATABASE, CREATE TABLE, SELECT, INSERT, ALTER ON nimbus.* TO nimbus_migrator;

CREATE USER IF NOT EXISTS nimbus_migrate
    IDENTIFIED WITH sha256_hash BY 'SHA256 OF ITS PASSWORD'
    DEFAULT ROLE nimbus_migrator;

GRANT nimbus_migrator TO nimbus_migrate;

-- People and programs of one org that read with SQL of their own. readonly = 1: they change no setting, so neither the
-- limits nor SQL_org_id, which is a constant of each user. A user without it has no org, and every question of his fails.
CREATE SETTINGS PROFILE IF NOT EXISTS nimbus_reading SETTINGS
    readonly = 1 CONST,
    allow_ddl = 0 CONST,
    allow_introspection_functions = 0 CONST,
    max_execution_time = 10 CONST,
    max_result_rows = 100000 CONST,
    result_overflow_mode = 'throw' CONST,
    max_rows_to_read = 50000000 CONST,
    read_overflow_mode = 'throw' CONST,
    max_memory_usage = 1073741824 CONST,
    max_threads = 2 CONST,
    max_concurrent_queries_for_user = 4 CONST;

CREATE ROLE IF NOT EXISTS nimbus_reader;

CREATE QUOTA IF NOT EXISTS nimbus_reading
    KEYED BY user_name
    FOR INTERVAL 1 minute MAX queries = 300, read_rows = 2000000000, execution_time = 120
    TO nimbus_reader;

GRANT SELECT ON nimbus.ci_logs TO nimbus_reader;

GRANT SELECT ON nimbus.ci_logs_links TO nimbus_reader;

-- One for each org that wants one; 1 is the org's id.
CREATE USER IF NOT EXISTS nimbus_reader_of_org_1
    IDENTIFIED WITH sha256_hash BY 'SHA256 OF ITS PASSWORD'
    DEFAULT ROLE nimbus_reader
    SETTINGS PROFILE 'nimbus_reading', SQL_org_id = 1 CONST;

GRANT nimbus_reader TO nimbus_reader_of_org_1;

-- None of them reaches beyond the tables: no file, no URL, no other server, no system table that was not granted.
REVOKE SOURCES ON *.* FROM nimbus_writer, nimbus_migrator, nimbus_reader;

REVOKE SELECT ON system.* FROM nimbus_reader;
