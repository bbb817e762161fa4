"use strict";

// no validator: it is a service of somebody else's, and would be told where this page is
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  requestSnippetsEnabled: true,
  presets: [SwaggerUIBundle.presets.apis],
});
