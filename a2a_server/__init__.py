"""The A2A face: agents delegate durable tasks and follow their event log."""
