"""What a sweep file says, validated."""
