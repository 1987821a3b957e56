"""The API's description of itself: what each route takes and answers, and the OpenAPI document made of it."""
