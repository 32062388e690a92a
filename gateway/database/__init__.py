"""The gateway's one database: who may call, what was reserved, what was used."""
