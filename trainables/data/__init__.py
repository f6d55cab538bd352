"""What a trial learns: rows, chats, templates and token ids."""
