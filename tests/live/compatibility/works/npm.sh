# Pack a package, install its tarball into a project, run the project's script.
export npm_config_update_notifier=false npm_config_fund=false npm_config_audit=false
mkdir greet app
echo '{"name": "greet", "version": "1.0.0", "main": "greet.js"}' >greet/package.json
echo 'module.exports = name => `Hello ${name}`' >greet/greet.js
cd app
echo '{"name": "app", "version": "1.0.0", "scripts": {"start": "node app.js"}}' >package.json
echo 'console.log(require("greet")("npm"))' >app.js
npm install --silent --offline "./$(npm pack --silent ../greet)"
[ "$(npm run --silent start)" = 'Hello npm' ]
