"""The embedded parts of `archiver demo`: a simulated voice-bot platform and a real S3 server."""
