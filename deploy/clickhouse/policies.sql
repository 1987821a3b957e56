-- Which rows each of the users of users.sql sees. Run as an administrator, after users.sql.
-- A table with one policy hides its rows from whom no policy names; so the service and the migrations are named too.

CREATE ROW POLICY IF NOT EXISTS nimbus_own_org ON nimbus.ci_logs
    FOR SELECT USING org_id = toUInt64(getSetting('SQL_org_id')) AS RESTRICTIVE TO nimbus_reader;

CREATE ROW POLICY IF NOT EXISTS nimbus_own_org ON nimbus.ci_logs_links
    FOR SELECT USING org_id = toUInt64(getSetting('SQL_org_id')) AS RESTRICTIVE TO nimbus_reader;

CREATE ROW POLICY IF NOT EXISTS nimbus_any_org ON nimbus.ci_logs
    FOR SELECT USING 1 AS PERMISSIVE TO nimbus_writer, nimbus_migrator, nimbus_reader;

CREATE ROW POLICY IF NOT EXISTS nimbus_any_org ON nimbus.ci_logs_links
    FOR SELECT USING 1 AS PERMISSIVE TO nimbus_writer, nimbus_migrator, nimbus_reader;
