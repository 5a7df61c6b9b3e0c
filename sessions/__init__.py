"""What a conversation is: the dialogue state machine, the wire's types, the journal and the store it commits to."""
