"""The fleet: registry, jobs, rollouts and audit in one database; MQTT wakes, the database is the truth."""
